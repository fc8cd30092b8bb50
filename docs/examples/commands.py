from trainer.evaluate.evaluator import Compute, Evaluator
from trainer.settings import Settings
from trainer.training import train

run = train(Settings(method="pace", epochs=1, width=0.06, workers=0, device="cpu"), "out/demo", "runs/small")
result = Evaluator("out/demo", run, compute=Compute(device="cpu")).measure("knn")
print(result["rows"][0]["metric"], result["rows"][0]["value"], result["file"])
