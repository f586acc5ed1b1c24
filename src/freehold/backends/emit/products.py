"""The labels by which a cluster's nodes tell their GPUs: a plan for H100 must not start on an L4.

Knows names of products; knows no pod. Path: pods.engine_pod -> affinity
"""

from __future__ import annotations

from freehold.backends.contract import DeployPlan
from freehold.backends.emit.contract import Doc

# What NVIDIA's feature discovery labels nodes with, by our names; spaces are dashes there. Several: as boards differ.
PRODUCT = "nvidia.com/gpu.product"
_PRODUCTS = {
    "h100": ("NVIDIA-H100-80GB-HBM3",),
    "h100-pcie": ("NVIDIA-H100-PCIe",),
    "h200": ("NVIDIA-H200",),
    "b200": ("NVIDIA-B200",),
    "gb200": ("NVIDIA-GB200",),
    "a100": ("NVIDIA-A100-SXM4-80GB",),
    "a100-pcie": ("NVIDIA-A100-80GB-PCIe",),
    "a100-40gb": ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
    "l40s": ("NVIDIA-L40S",),
    "l4": ("NVIDIA-L4",),
    "t4": ("Tesla-T4",),
    "rtx-4090": ("NVIDIA-GeForce-RTX-4090",),
    "rtx-5090": ("NVIDIA-GeForce-RTX-5090",),
}


def affinity(plan: DeployPlan) -> Doc:
    """Return a pod's affinity to nodes with the GPU that the plan is for; {} where its label is not known."""
    products = _PRODUCTS.get(plan.nodes.rig.device.name, ())
    if not products:
        return {}
    wanted = {"matchExpressions": [{"key": PRODUCT, "operator": "In", "values": list(products)}]}
    needed = {"nodeSelectorTerms": [wanted]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": needed}}}
