"""`PolicyScheduler`: one of our policies in a vLLM server.

    vllm serve MODEL --scheduler-cls agents.vllm.scheduler.PolicyScheduler

The environment variable LLMSCHED_VLLM names a file that says which policy (`agents.vllm.settings`).
"""

from vllm import __version__
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from agents.vllm.steering import Steering
from agents.vllm.versions import check_version

check_version("agents.vllm.scheduler.PolicyScheduler", __version__)


class PolicyScheduler(Steering, AsyncScheduler):  # type: ignore[misc]
    """The asynchronous scheduler of vLLM, steered by a policy."""
