"""`QueueConfig`: what the trainer for queues does beside PPO, each part of it to be switched off alone."""

from dataclasses import dataclass
from typing import Annotated, Literal

from engine.errors import InputError
from engine.fields import checked
from engine.ranges import MOST_SECONDS, number, whole
from llmsched_env.observation import OBSERVATION_NAMES

Positive = Annotated[float, number(0.0, 1e6, above=True)]
Weight = Annotated[float, number(0.0, 1e6)]
USUAL_REQUEST_S = 0.42
"""Work of the default workload's mean request on the default device (`llmsched_env.privileged`), s."""
Some = Annotated[int, whole(1, 10**7)]


@dataclass(frozen=True)
class QueueConfig:
    """The trainer for queues; without `group_size` there is none of it, and rows serve episodes.

    `teacher` gives the levels to begin with (empty: the middle ones), nothing is imitated; `normalize`, `vf_coef` and
    `env_id` have no effect. With scenarios, seconds of `discount_s` and `trace_s` are those of a world whose mean
    request is USUAL_REQUEST_S of work, and scale with it.
    """

    group_size: Annotated[int, whole(0, 10**5)] = 0
    """Rows that serve the same arrivals at a time; they never begin anew from an empty server (0: episodes)."""
    reference: str = "slackfit:tuned"
    """Baseline whose levels serve each trace until the rows take over, and whose mean cost is the unit of a world's
    costs (empty: the middle level of every knob)."""
    judge: str = "slackfit:tuned"
    """Baseline that the policies of the run are compared with on held-out traces, to choose the best one."""
    burn_in: Some = 600
    """Requests of each trace that the reference serves before."""
    resync: bool = True
    """Put all rows of a group into the state of one of them before each rollout."""
    privileged: bool = True
    """Let the critic see what only the simulator knows (`llmsched_env.privileged`)."""
    features: tuple[str, ...] = ()
    """Observations that the actor sees (none: all of them); the critic sees them all."""
    actor: tuple[Annotated[int, whole(1, 4096, noun="widths")], ...] = ()
    """Width of the actor's hidden layers (none: levels are linear in the features)."""
    exploration: Literal["steps", "rollout"] = "rollout"
    """Noise of its own for each decision, or in the last layer's weights, kept by a row over a rollout (gSDE)."""
    std: Annotated[float, number(0.0, 100.0, above=True)] = 0.7
    """Standard deviation of the first policy, in levels."""
    least_std: Annotated[float, number(0.0, 100.0)] = 0.3
    """It does not fall below this."""
    antithetic: bool = True
    """With noise over a rollout: half of a group's rows explore in the opposite directions of the others."""
    std_rate: Weight = 0.3
    """Learning rate of the standard deviations, relative to that of the levels."""
    hidden_rate: Weight = 0.1
    """Learning rate of the actor's hidden layers, relative to that of the levels."""
    average_cost: bool = True
    """Rewards are minus what a world costs above its running mean (differential rewards)."""
    relative_costs: bool = True
    """Costs of a world count relative to what the reference costs there, so that the highest load does not drown the
    others."""
    equal_deviations: bool = False
    """Scale the advantages of each world to the same deviation, too, so that no bursty one drowns the others."""
    trace_s: Annotated[float, number(0.0, MOST_SECONDS)] = 0.0
    """Seconds over which the trace of advantages decays to 1/e (0: the whole rollout and the value at its end)."""
    late_limit: Weight = 0.0
    """Late gaps between tokens that each finished request of a tier may have on average, as a constraint with a learned
    multiplier for each tier, beside the weights of the reward (0: no constraint)."""
    multiplier_rate: Positive = 0.5
    """Request-seconds by which the cost of a late gap rises in a rollout with twice as many of them."""
    paired: bool = True
    """Subtract from advantages the mean of the other rows of the group at the same time."""
    critic_steps: Some = 96
    """Gradient steps of the critic after each rollout."""
    critic_batch: Some = 1024
    """Decisions in each of them."""
    critic_rate: Positive = 1e-3
    """Step size of the critic."""
    differences: Weight = 4.0
    """Weight of the critic's loss on differences between the rows of a group at the same time (0: none)."""
    warm_up: Annotated[int, whole(0, 10**6)] = 10
    """Rollouts in which only the critic learns."""
    averaging: Annotated[float, number(0.0, 1.0, below=True)] = 0.95
    """The policy that is evaluated and exported is a running mean of the actor's weights, of which so much stays at
    each update (0: the actor itself)."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one is out of range, or a feature is not an observation.
        """
        checked(self, "queue")
        if unknown := [name for name in self.features if name not in OBSERVATION_NAMES]:
            raise InputError(f"queue.features: expected names among {', '.join(OBSERVATION_NAMES)}, got {unknown[0]!r}")
        if self.paired and self.group_size == 1:
            raise InputError("queue.paired: expected false where a group has one row")

    @property
    def is_on(self) -> bool:
        """Whether rows go on for ever."""
        return self.group_size > 0
