import torch
from torch import nn
from torch.utils.data import DataLoader

from trainer.checkpoint import load
from trainer.data import ClipDataset
from trainer.evaluate.features import networks

network = networks(load("runs/pace-r3d10-1"))["pretrained"]
dataset = ClipDataset("out/demo", clips="labelled", labels=["statistics/motion"])
head = nn.Linear(network.features, 16)  # which of 4 x 4 blocks has the largest motion?
optimiser = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.01)
for batch in DataLoader(dataset, batch_size=4, shuffle=True):
    logits = head(network(batch["clip"])["conv5"].mean((2, 3, 4)))
    loss = nn.functional.cross_entropy(logits, batch["statistics/motion"][:, 0].long())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
