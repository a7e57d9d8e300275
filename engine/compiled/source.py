"""How numba compiles what is kept: functions that only compiled code calls stay LLVM's code until somebody calls them.

Left alone, numba makes machine code of every function, with all that it calls. Of one that only becomes part of its
callers nobody runs it, and deep in a tree of calls it is made of the same code at each level. `SourceCompiler` stops
before: what it compiles is optimised, kept, and becomes machine code with whoever calls it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numba import types
from numba.core import codegen, compiler
from numba.extending import models, register_model

if TYPE_CHECKING:
    from numba.core.codegen import JITCPUCodegen
    from numba.core.compiler import CompileResult
    from numba.core.cpu import CPUContext
    from numba.core.typing.context import Context

_codegen: Any = codegen  # numba's classes have no type hints
_compiler: Any = compiler


class _Library(_codegen.JITCodeLibrary):  # type: ignore[misc]
    """A function with all that it calls, as LLVM's code."""

    def _optimize_final_module(self) -> None:
        """The first of numba's two rounds: the caller's code goes through both."""
        numba = self._codegen
        passes, builder = numba._module_pass_manager(
            loop_vectorize=numba._loopvect, slp_vectorize=False, opt=numba._opt_level, cost="cheap"
        )
        passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """No address: there is no machine code."""
        self._ensure_finalized()
        return 0

    def serialize_using_object_code(self) -> Any:
        """What the cache keeps."""
        return self.serialize_using_bitcode()


class _Codegen(_codegen.JITCPUCodegen):  # type: ignore[misc]
    """Makes such libraries; all else it shares with numba's own."""

    _library_class = _Library

    def __init__(self, numba: JITCPUCodegen) -> None:
        self.__dict__.update(vars(numba))

    def set_env(self, env_name: str, env: object) -> None:
        """Nothing: the place for it is made with the caller (`bind_environments`)."""


@functools.cache
def source_target(context: CPUContext) -> Any:
    """Numba's target context, but what is compiled for it stays LLVM's code."""
    return context.subtarget(_internal_codegen=_Codegen(context.codegen()))


def bind_environments(result: CompileResult) -> None:
    """Give the functions that became part of a compiled one the Python objects which they refer to, if any do."""
    for environment in result._find_referenced_environments():
        result.codegen.set_env(environment.env_name, environment)


class SourceCompiler(_compiler.Compiler):  # type: ignore[misc]
    """Numba's compiler as far as LLVM's code (option ``pipeline_class``)."""

    def __init__(self, typing_context: object, target_context: CPUContext, *arguments: object) -> None:
        super().__init__(typing_context, source_target(target_context), *arguments)


class Called(types.Dispatcher):
    """Numba's type of a function that compiled code calls. It would compile it again for each constant in a call."""

    def get_call_type(self, context: Context, args: Sequence[types.Type], kws: Mapping[str, types.Type]) -> Any:
        """The signature for the arguments of a call."""
        plain = tuple(map(types.unliteral, args)), {name: types.unliteral(kind) for name, kind in kws.items()}
        return super().get_call_type(context, *plain)


register_model(Called)(models.OpaqueModel)
