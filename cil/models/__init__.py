"""Models: backbones by name, heads that grow, networks that grow or branch, and frozen or folded copies of them."""

from cil.models.aggregation import AggregatedBackbone, ScaledConv2d
from cil.models.base import Backbone, Output, count_parameters
from cil.models.branching import BranchingNet
from cil.models.cifar import CifarResNet
from cil.models.convit import ConViT, TaskTokenNet
from cil.models.convnets import ConvNet2, ConvNet4, SmallConvNet
from cil.models.factory import NetFactory
from cil.models.features import extract, extract_outputs
from cil.models.frozen import evaluating, freeze, frozen_copy, is_frozen
from cil.models.growing import GrowingNet, Normalise
from cil.models.heads import CosineHead, Head, LinearHead, weight_align
from cil.models.imagenet import ImageNetResNet
from cil.models.registry import build_backbone, names, register_model
from cil.models.reparameterised import ParallelAdapters, adaptable
from cil.models.resnext import CifarResNeXt
from cil.models.task_networks import TaskNet, TaskNets, TaskPool, batch_statistics_features
from cil.models.timm_zoo import TimmBackbone, timm_backbone
from cil.models.weights import load_weights, save_weights
from cil.models.wide_resnets import WideResNet

__all__ = [
    "AggregatedBackbone", "Backbone", "BranchingNet", "CifarResNeXt", "CifarResNet", "ConViT", "ConvNet2", "ConvNet4",
    "CosineHead", "GrowingNet", "Head", "ImageNetResNet", "LinearHead", "NetFactory", "Normalise", "Output",
    "ParallelAdapters", "ScaledConv2d", "SmallConvNet", "TaskNet", "TaskNets", "TaskPool", "TaskTokenNet",
    "TimmBackbone", "WideResNet", "adaptable", "batch_statistics_features", "build_backbone", "count_parameters",
    "evaluating", "extract", "extract_outputs", "freeze", "frozen_copy", "is_frozen", "load_weights",
    "names",
    "register_model", "save_weights", "timm_backbone", "weight_align",
]  # fmt: skip
