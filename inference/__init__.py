"""Models on streams: instances as they were seen, predictions, labels and scores as streams."""

from inference.dataset import Dataset, build
from inference.task import Task
from inference.worker import Worker

__all__ = ["Dataset", "Task", "Worker", "build"]
