import numpy as np
import pandas as pd
import tensorboard  # noqa: F401  (torch needs it)
from torch.utils.tensorboard import SummaryWriter

table = pd.read_parquet("features.parquet")
names = table[["id", "label", "start"]].astype(str)
with SummaryWriter("projector") as writer:
    writer.add_embedding(np.stack(table["vector"]), names.values.tolist(), metadata_header=list(names))
