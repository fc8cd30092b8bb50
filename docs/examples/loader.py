from torch.utils.data import DataLoader

from trainer.data import ClipDataset

dataset = ClipDataset("out/demo", part="train", clips="random", crop="random", mirror=True)
loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=2)
for batch in loader:
    clips, labels = batch["clip"], batch["label"]  # float32 [4, 3, 16, S, S], int64 [4], an index into dataset.classes
