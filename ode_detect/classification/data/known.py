"""The data sets that are known by name: where they are looked for, their classes, how to get them."""

from __future__ import annotations

from pathlib import Path

from .folders import FolderSource
from .sources import CifarSource, IdxSource, Source

_DIGITS = "0,1,2,3,4,5,6,7,8,9"
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
_CIFAR100 = (
    "apple,aquarium_fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,camel,can,castle,"
    "caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,cup,dinosaur,dolphin,elephant,"
    "flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,lawn_mower,leopard,lion,lizard,lobster,man,"
    "maple_tree,motorcycle,mountain,mouse,mushroom,oak_tree,orange,orchid,otter,palm_tree,pear,pickup_truck,pine_tree,"
    "plain,plate,poppy,porcupine,possum,rabbit,raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,"
    "snail,snake,spider,squirrel,streetcar,sunflower,sweet_pepper,table,tank,telephone,television,tiger,tractor,train,"
    "trout,tulip,turtle,wardrobe,whale,willow_tree,wolf,woman,worm"
)
_IDX = (
    ("mnist", _DIGITS, "python datasets/download.py mnist"),
    ("fashion_mnist", _FASHION, "python datasets/download.py fashion_mnist"),
    ("digits", _DIGITS, "python datasets/prepare_digits.py"),
)
_CIFAR = (("cifar10", "CIFAR10", _CIFAR10), ("cifar100", "CIFAR100", _CIFAR100))
_IMAGENET = "download ImageNet from https://image-net.org, and give imagenet/train and imagenet/val a folder per class"


def known_sources(root: Path) -> list[Source]:
    """The sets in a folder, whether they are there or not: ``mnist_train``, ``mnist_test``, ``cifar10_train``, ..."""
    sources: list[Source] = []
    for part in ("train", "test"):
        for name, classes, advice in _IDX:
            sources.append(IdxSource(f"{name}_{part}", root / name, advice, part, tuple(classes.split(","))))
        for name, kind, classes in _CIFAR:
            advice = f"python datasets/download.py {name}"
            sources.append(CifarSource(f"{name}_{part}", root / name, advice, part, kind, tuple(classes.split(","))))
    for part in ("train", "val"):
        sources.append(FolderSource(f"imagenet_{part}", root / "imagenet" / part, _IMAGENET))
    return sources
