import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

table = pd.read_parquet("features.parquet")
x, y = np.stack(table["vector"]), table["label"]
classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
print(classifier.score(x, y))  # measure on other videos
