"""Numbered random numbers of compiled code."""

import numpy as np

from engine.compiled.random import uniform


def test_the_random_numbers_are_uniform_and_differ_between_seeds() -> None:
    numbers = np.array([[uniform(seed, k) for k in range(4000)] for seed in (0, 1, 2**53 - 1)])
    assert ((numbers >= 0.0) & (numbers < 1.0)).all()
    shares = np.array([np.histogram(line, 10, (0.0, 1.0))[0] for line in numbers]) / 4000
    assert np.abs(shares - 0.1).max() < 0.02
    assert np.abs(np.corrcoef(numbers) - np.eye(3)).max() < 0.06
    assert np.abs([np.corrcoef(line[1:], line[:-1])[0, 1] for line in numbers]).max() < 0.06


def test_the_first_numbers_are_those_of_splitmix64() -> None:
    assert [int(uniform(0, k) * 2.0**53) for k in range(3)] == [
        0xE220A8397B1DCDAF >> 11,
        0x6E789E6AA1B965F4 >> 11,
        0x06C45D188009454F >> 11,
    ]
