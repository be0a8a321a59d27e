"""The command `python -m capture_lib.experiments.stages`, or `accelerate launch -m` for many processes."""

import argparse
import sys

from capture_lib import utils
from capture_lib.experiments import stages
from capture_lib.experiments.run import open_run
from capture_lib.utils import InputError

UNTIL = {"composites": stages.composites, "detector": stages.trained_detector,
         "region_encoder": stages.trained_encoder, "region_store": stages.region_store,
         "pretrain": stages.pretrained}


def main(arguments: list[str] | None = None) -> int:
    """Make the stages of a run; return the exit code."""
    parser = argparse.ArgumentParser("capture_lib.experiments.stages", description="Make the stages of a run.")
    parser.add_argument("--profile", default="cpu", help="smoke, cpu (default), thorough, gpu or product1m")
    parser.add_argument("--catalog", default="", help="a catalog folder; default: the profile's drawn world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", default="pretrain", choices=UNTIL, help="the last stage (default pretrain)")
    options = parser.parse_args(arguments)
    try:
        if utils.is_main_process():  # draws the world where it is not there
            open_run(options.profile, options.catalog)
        utils.wait_for_everyone()
        run = open_run(options.profile, options.catalog, seed=options.seed)
        UNTIL[options.until](run)
        utils.say(f"{utils.display_path(run.stages)}: made until {options.until}")
    except (InputError, FloatingPointError, KeyboardInterrupt) as error:
        print(f"{parser.prog}: {str(error) or 'interrupted; the same command goes on'}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    if utils.process_count() > 1:
        utils.accelerator().end_training()
    return 0
