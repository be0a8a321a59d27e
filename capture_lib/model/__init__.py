"""CAPTURE, its losses, and the checkpoints it reads."""

from capture_lib.model.capture import Capture as Capture
from capture_lib.model.config import CaptureSettings as CaptureSettings
