"""What papermill runs notebooks by: the kernel of this interpreter, and an engine that saves once."""

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines


class OwnKernels(KernelSpecManager):
    """Knows one kernel, that of the interpreter which asks, whatever is called `python3` in JUPYTER_PATH or at home."""

    ensure_native_kernel = True

    def _kernel_dirs_default(self) -> list[str]:
        return []


class OwnKernelManager(AsyncKernelManager):
    """Starts that kernel."""

    def _kernel_spec_manager_default(self) -> OwnKernels:
        return OwnKernels(parent=self)


class SavesOnce(NBClientEngine):
    """Writes a notebook when its execution has ended, in whatever way; papermill's own does at each cell, twice."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **kwargs: object) -> None:
        path = nb_man.output_path
        nb_man.output_path = None
        try:
            super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
        finally:
            nb_man.output_path = path


papermill_engines.register("saves-once", SavesOnce)
