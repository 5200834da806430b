"""The events that are measured, by the name of their shape."""

from __future__ import annotations

from typing import Any

USER = "5f8b1c52-6c1a-4d6e-9a39-0c5a1f0c8a77"

SMALL = {"pages": 12}

TWELVE = {
    "pipeline": "training",
    "stack": "default",
    "orchestrator": "local",
    "steps": 7,
    "duration": 12.75,
    "cached": False,
    "artifacts": 21,
    "python": "3.11.9",
    "region": "eu-central-1",
    "model": "resnet-50 with a longer name, as people give them to their models",
    "error": None,
    "source": "/home/somebody/projects/example/pipelines/training.py",
}

NESTED = {
    "pipeline": {"name": "training", "steps": [{"name": f"step {n}", "seconds": n * 1.5} for n in range(8)]},
    "stack": {"orchestrator": {"flavor": "local"}, "artifact_store": {"flavor": "s3", "path": "s3://bucket/prefix"}},
    "tags": ["nightly", "gpu", "eu"],
}

SHAPES: dict[str, dict[str, Any]] = {"small": SMALL, "12 properties": TWELVE, "nested": NESTED}
