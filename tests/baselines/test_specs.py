"""How policies are written down: names, parameters, and what is said about a wrong one."""

from dataclasses import fields

import pytest

import baselines
from engine.errors import InputError
from engine.fields import types_of


@pytest.mark.parametrize("name", baselines.names())
def test_a_policy_says_what_it_is_and_its_spec_builds_it_again(name: str) -> None:
    policy = baselines.make(name)
    assert policy == baselines.POLICIES[name]()
    assert (policy.name, policy.spec) == (name, name)
    assert policy.paper
    assert policy.evidence
    assert policy.__doc__
    kinds = types_of(type(policy))
    for field in fields(policy):
        number = 0.25 if field.name == "watermark" else 3.25
        value = {int: 7, float: number, bool: not field.default}.get(kinds[field.name])
        if value is not None:
            changed = baselines.make(f"{name}:{field.name}={value}")
            assert getattr(changed, field.name) == value
            assert changed.spec == f"{name}:{field.name}={value}"
            assert baselines.make(changed.spec) == changed


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("slia", "policy: expected one of fastertransformer, orca, vllm, "),
        ("", "policy: expected one of "),
        (" slai", "policy: expected one of "),
        ("slai:ofset=3", "policy 'slai': expected one of token_budget, order, offset,"),
        ("slai:offset", "policy 'slai': expected one of .* as name=value, got 'offset'"),
        ("slai:offset=", "policy 'slai': offset: expected a number, got ''"),
        ("slai:offset=five", "policy 'slai': offset: expected a number, got 'five'"),
        ("slai:offset=-1", "policy 'slai': offset: expected a number >= 0, got -1.0"),
        ("slai:offset=nan", "policy 'slai': offset: expected a number, got 'nan'"),
        ("slai:fixed_offset=perhaps", "policy 'slai': fixed_offset: expected true or false, got 'perhaps'"),
        ("slai:token_budget=1.5", "policy 'slai': token_budget: expected a whole number, got 1.5"),
        ("slai:max_decodes=0", "policy 'slai': max_decodes: expected requests >= 1, got 0"),
        ("sarathi:token_budget=0", "policy 'sarathi': token_budget: expected tokens >= 1, got 0"),
        ("sarathi:order=lifo", "policy 'sarathi': order: expected fcfs or spf, got 'lifo'"),
        ("vllm:max_batched_tokens=-1", "policy 'vllm': max_batched_tokens: expected tokens >= 0, got -1"),
        ("orca:batch_cap=0", "policy 'orca': batch_cap: expected requests >= 1, got 0"),
        ("fastertransformer:batch_cap=-3", "policy 'fastertransformer': batch_cap: expected requests >= 1, got -3"),
    ],
)
def test_a_wrong_spec_gives_one_line_that_says_what_is_expected(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        baselines.make(spec)
    assert "\n" not in str(caught.value)


def test_settings_of_a_spec_are_parsed_by_the_type_of_the_parameter() -> None:
    policy = baselines.make("slai:token_budget=1_024,offset=3,fixed_offset=true,order=spf")
    assert policy == baselines.SLAI(token_budget=1024, offset=3.0, fixed_offset=True, order="spf")
    assert baselines.make("slai:") == baselines.SLAI()
