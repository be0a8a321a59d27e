"""CAPTURE, its losses, and the checkpoints that it reads: config, layers, capture, losses, released, bert."""

from capture_lib.model.capture import Capture as Capture
from capture_lib.model.config import CaptureSettings as CaptureSettings
