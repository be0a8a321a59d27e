"""The kernel of this interpreter, whatever other kernels JUPYTER_PATH or the user's folders call `python3`."""

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager


class OwnKernels(KernelSpecManager):
    """Knows one kernel, that of the interpreter which asks: it looks into no folder."""

    ensure_native_kernel = True

    def _kernel_dirs_default(self) -> list[str]:
        return []


class OwnKernelManager(AsyncKernelManager):
    """Starts that kernel."""

    def _kernel_spec_manager_default(self) -> OwnKernels:
        return OwnKernels(parent=self)
