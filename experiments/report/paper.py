"""What the paper prints (Schwarzschild et al., ICLR 2022): every number and claim that we compare with; read by the sections."""

from __future__ import annotations

TABLE_1 = {  # data: net: (test accuracy in percent, standard error, parameters as printed)
    "CIFAR-10": {"recurrent": (93.99, 0.10, "3.56 M"), "ResNet-18": (94.69, 0.03, "11.2 M")},
    "SVHN": {"recurrent": (96.04, 0.08, "3.56 M"), "ResNet-18": (95.48, 0.11, "11.2 M")},
    "EMNIST": {"recurrent": (87.42, 0.19, "3.57 M"), "ResNet-18": (87.71, 0.09, "11.2 M")},
}
TABLE_2 = {  # depth: percent of small mazes solved
    "recurrent": {8: 75.07, 12: 90.41, 16: 94.70, 20: 95.19},
    "feed-forward": {8: 75.59, 12: 90.58, 16: 93.84, 20: 95.00},
}
PROBES = {  # table: net: (train, test) in percent after each module or iteration
    "T3": {
        "feed_forward": [(84.7, 81.6), (94.1, 86.9), (99.3, 89.8), (100.0, 90.6)],
        "recurrent": [(86.3, 82.3), (95.9, 87.5), (99.5, 89.4), (99.9, 90.3)],
    },
    "T6": {
        "feed_forward": [(85.7, 83.4), (94.1, 88.0), (99.4, 90.2), (99.8, 90.8)],
        "recurrent": [(88.1, 84.1), (96.9, 88.4), (99.7, 89.8), (99.9, 90.4)],
    },
    "T7": {
        "recurrent mlp": [
            (46.52, 44.28),
            (50.67, 47.22),
            (57.54, 52.07),
            (59.43, 54.08),
            (61.43, 55.19),
            (61.54, 55.39),
        ],
        "recurrent convnet": [(58.74, 68.67), (59.68, 66.99), (65.39, 70.74), (67.73, 73.84)],
    },
}
TABLE_4 = {
    "CIFAR-10": ["3072x200", "200x200", "200x10"],
    "SVHN": ["3072x500", "500x500", "500x10"],
    "EMNIST": ["3072x500", "500x500", "500x47"],
}
TABLE_5 = {"CIFAR-10": [32, 64, 64, 128, 10], "SVHN": [32, 64, 64, 128, 10], "EMNIST": [32, 64, 64, 128, 47]}
CLAIM_4 = {"none": 76.48, "shared": 75.13}
CLAIM_5 = {"FF8-R8": 0.843, "FF8-FF4": 0.819}

CLAIMS = {
    "T1": "A recurrent net with a BatchNorm per iteration comes near ResNet-18 with a third of its parameters.",
    "T1-depths": "No number is printed; the authors swept these depths.",
    "T2": "Dilated maze nets solve 75 to 95 % of the small mazes; recurrent and feed-forward alike.",
    "T3": "Features after equal numbers of modules separate the classes equally well, recurrent or not.",
    "T4": "Sizes of the MLPs.",
    "T5": "Channels of the ConvNets.",
    "T6": "The same as Table 3 on average-pooled features.",
    "T7": "Recurrent MLPs and ConvNets refine their features from iteration to iteration.",
    "F1": "Three iterations of a one-layer module and four layers outside: effective depth 7.",
    "F2": "Accuracy depends on effective depth; sharing weights costs almost nothing.",
    "F2a": "MLPs: on CIFAR-10 accuracy is not monotone in depth, and the recurrent nets follow the feed-forward ones.",
    "F2b": "ConvNets: recurrent nets follow their feed-forward twins.",
    "F2b-wide": "As F2b; the authors' launch files give width 128 for EMNIST, the paper 64.",
    "F2c": "Residual nets: SVHN rises with depth; at CIFAR-10 depth 15 the recurrent net equals the feed-forward one.",
    "F2d": "ImageNet: accuracy rises with depth, recurrent about as feed-forward.",
    "F3": "A maze and its solution.",
    "F4": "The lengths of the shortest paths of the three maze sets.",
    "F5": "More depth solves more mazes, beyond what the receptive field needs; recurrent as feed-forward; smaller are easier.",
    "F5-adam": "Not in the paper.",
    "F6": "Many filters are active on iterations other than their most active one.",
    "F7": "Deeper layers and later iterations alike show larger structures.",
    "F8": "Deeper layers and later iterations alike show larger structures.",
    "F9": "Untrained nets show another distribution than trained ones.",
    "F10": "SVHN: every filter is used on more than one iteration.",
    "F11": "The residual nets reuse their filters likewise.",
    "F12": "As Figure 7.",
    "F13": "As Figure 8.",
    "C1": "12 M parameters against 31 M at depth 15.",
    "C2": "3.56 M (CIFAR-10, SVHN) and 3.57 M (EMNIST) against 11.2 M.",
    "C3": "Depth = layers outside + iterations × layers per module.",
    "C4": "ResNet-50: 76.48 % as it is, 75.13 % with weights shared inside the stages.",
    "C5": "CKA of an 8-layer feed-forward net with a recurrent one of that depth is 0.843, with a 4-layer one 0.819.",
    "C6": "8 convolutions see a whole small maze, 12 a large one; accuracy still rises past depth 20.",
    "C7": "Fewer than 0.5 % of the training mazes are duplicates.",
    "C8": "Training and test mazes do not overlap.",
    "C9": "Dilated nets solve more mazes than undilated ones.",
    "C10": "Several hours per net on a 2080 Ti, 8 hours for mazes, 4 GPUs for ImageNet.",
    "C11": "Every filter is active on more than one iteration.",
}
