import numpy as np
import torch

from labelgen.decode import frames
from trainer.checkpoint import load
from trainer.evaluate.features import networks

saved = load("runs/pace-r3d10-1")  # a run, a checkpoint folder, or a .safetensors file of `vssl export`
network = networks(saved)["pretrained"].eval()  # a torch.nn.Module; "random": its initial weights
config = saved.meta["config"]  # of the frames of its training: height, width, crop, clip_length

video = np.stack([*frames("video.mp4", config["height"], config["width"])])  # RGB uint8 [N, H, W, 3]
y, x = ((have - config["crop"]) // 2 for have in video.shape[1:3])
pixels = torch.from_numpy(video[:, y : y + config["crop"], x : x + config["crop"]]).float() / 255
clips = network.input.normalised(pixels).unfold(0, config["clip_length"], config["clip_length"])  # [B, S, S, 3, T]
with torch.inference_mode():
    stages = network(clips.permute(0, 3, 4, 1, 2))
features = stages["conv5"].mean((2, 3, 4))  # float32 [B, 512]: a vector for every 16 frames
