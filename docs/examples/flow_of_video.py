import numpy as np

from labelgen.flow import flows

for flow in flows("video.mp4", short=64):  # float32 [H, W, 2]: u and v in pixels, from each frame to the next
    speed = np.hypot(flow[..., 0], flow[..., 1]).mean()
