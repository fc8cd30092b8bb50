import numpy as np
import pandas as pd

table = pd.read_parquet("features.parquet", columns=["id", "start", "end", "label", "vector"])
values = pd.DataFrame(np.stack(table["vector"]), index=table["id"])
print(table.groupby("label")["id"].nunique(), values.groupby("id").mean())
