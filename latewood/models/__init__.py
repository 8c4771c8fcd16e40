"""The networks of the papers at their sizes, as factories with keyword arguments.

Each returns an ordinary ``nn.Module`` and draws its weights from torch's global generator.
"""

from latewood.models.convnet import convnet, lenet
from latewood.models.deeplab import deeplab
from latewood.models.grokking_transformer import grokking_transformer
from latewood.models.lstm import (
    bidirectional_lstm,
    lstm_classifier,
    lstm_language_model,
)
from latewood.models.mlp import mlp
from latewood.models.mobilenet import mobilenet_v1
from latewood.models.resnet import resnet, resnet18, resnet20, resnet34, resnet50, resnet56
from latewood.models.segmentation_unet import segmentation_unet
from latewood.models.transformer import transformer
from latewood.models.unet import unet
from latewood.models.vgg import vgg, vgg11, vgg13, vgg16
from latewood.models.wide_resnet import wide_resnet28

__all__ = [
    "bidirectional_lstm",
    "convnet",
    "deeplab",
    "grokking_transformer",
    "lenet",
    "lstm_classifier",
    "lstm_language_model",
    "mlp",
    "mobilenet_v1",
    "resnet",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "segmentation_unet",
    "transformer",
    "unet",
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "wide_resnet28",
]
