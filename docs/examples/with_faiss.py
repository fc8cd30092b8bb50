import faiss
import pyarrow.parquet as pq

table = pq.read_table("features.parquet", columns=["id", "start", "vector"])
vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1).copy()
faiss.normalize_L2(vectors)
index = faiss.IndexFlatIP(vectors.shape[1])
index.add(vectors)
similarity, rows = index.search(vectors[:1], 5)
print(table["id"].take(rows[0]), similarity[0])
