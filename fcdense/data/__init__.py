"""Data: arrays in mini-batches, splits, standardization, files and data sets."""

from fcdense.data.batches import Batch, Batches
from fcdense.data.csv_file import load_csv
from fcdense.data.datasets import Dataset, SplitDataset, digits, fashion_mnist, mnist
from fcdense.data.idx_file import load_idx
from fcdense.data.loader import DataLoader
from fcdense.data.npz_file import load_npz
from fcdense.data.split import split_rows, train_test_split, validation_split
from fcdense.data.standardize import Standardizer

__all__ = [
    "Batch",
    "Batches",
    "DataLoader",
    "Dataset",
    "SplitDataset",
    "Standardizer",
    "digits",
    "fashion_mnist",
    "load_csv",
    "load_idx",
    "load_npz",
    "mnist",
    "split_rows",
    "train_test_split",
    "validation_split",
]
