"""Text of the Python files of a deploy bundle, see :mod:`nas.training.bundle`."""

NETWORK_CODE = '''"""The network of this folder in PyTorch, with its weights; needs torch and nothing else.

    import network
    logits = network.load()(images)  # (N, 3, SIDE_OF_IMAGES, SIDE_OF_IMAGES), see preprocessing.json
"""

import json
from pathlib import Path

import torch
from torch import nn

# A convolution: in, out, kernel, stride, groups, activation, epsilon of its norm (None: a bias instead).
# TABLE

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hswish": nn.Hardswish, "swish": nn.SiLU,
               "hsigmoid": nn.Hardsigmoid, "sigmoid": nn.Sigmoid}


def convolution(inputs, outputs, kernel, stride, groups, activation, epsilon):
    parts = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=epsilon is None)]
    if epsilon is not None:
        parts.append(nn.BatchNorm2d(outputs, eps=epsilon))
    if activation:
        parts.append(ACTIVATIONS[activation]())
    return nn.Sequential(*parts)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels, squeezed, activation, gating):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.gating = ACTIVATIONS[activation](), ACTIVATIONS[gating]()

    def forward(self, features):
        pooled = features.mean((2, 3), keepdim=True)
        return features * self.gating(self.fc2(self.activation(self.fc1(pooled))))


class Block(nn.Module):
    def __init__(self, operators):
        super().__init__()
        kinds = {"conv": convolution, "se": SqueezeExcitation}
        self.block = nn.Sequential(*(kinds[kind](*each) for kind, *each in operators if kind != "add"))
        self.residual = ("add",) in operators

    def forward(self, features):
        return features + self.block(features) if self.residual else self.block(features)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        tail = (convolution(*each) for _, *each in TAIL)
        self.features = nn.Sequential(convolution(*STEM[1:]), *map(Block, BLOCKS), *tail)
        parts = []
        for number, (_, inputs, outputs, activation, *epsilon) in enumerate(CLASSIFIER, start=1):
            parts += [nn.Dropout(0.2)] if number == len(CLASSIFIER) else []
            parts += [nn.Linear(inputs, outputs, bias=not epsilon)]
            parts += [nn.BatchNorm1d(outputs, eps=each) for each in epsilon]
            parts += [ACTIVATIONS[activation]()] if activation else []
        self.classifier = nn.Sequential(*parts)

    def forward(self, images):
        return self.classifier(self.features(images).mean((2, 3)))


def weights(path):
    """The tensors of a safetensors file."""
    content = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    kinds = {"F32": torch.float32, "I64": torch.int64}
    found = {}
    for name, each in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = each["data_offsets"]
            data = torch.frombuffer(content[start + first:start + last], dtype=kinds[each["dtype"]])
            found[name] = data.reshape(each["shape"])
    return found


def load(path=Path(__file__).with_name("network.safetensors")):
    """The trained network, in evaluation mode."""
    network = Network()
    network.load_state_dict(weights(path))
    return network.eval()
'''

_PREDICT_CODE = """# Names what is on pictures: python predict.py photo.jpg ...
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(Path(__file__).with_name("MODEL"))
notes = session.get_modelmeta().custom_metadata_map
classes, how = json.loads(notes["classes"]), json.loads(notes["preprocessing"])
for path in sys.argv[1:] or sys.exit("name pictures: python predict.py photo.jpg ..."):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":  # 16 bits, or floats
        deep = np.asarray(image)
        scale = 1 / 257 if image.mode[0] == "I" else 255 if deep.max() <= 1 else 1
        image = Image.fromarray(np.rint(deep * scale).astype(np.uint8))
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    size = [how["resize"] * side // min(image.size) for side in image.size]
    left, top = ((side - how["crop"]) // 2 for side in size)
    box = (left, top, left + how["crop"], top + how["crop"])
    image = image.resize(size, Image.Resampling.BILINEAR).crop(box)
    pixels = (np.float32(image) / np.float32(255) - np.float32(how["mean"])) / np.float32(how["std"])
    (scores,) = session.run(None, {"input": pixels.transpose(2, 0, 1)[None]})
    print(path, classes[scores.argmax()], sep=": ")
"""


def predict_code(model: str) -> str:
    """Source of a script that names what is on pictures, as validation saw them.

    Args:
        model: name of an ONNX file of ours beside the script; its metadata has classes and preprocessing.
    """
    return _PREDICT_CODE.replace("MODEL", model)
