"""One evaluation for `vssl eval` and for studies: a run (or features) and shards in, a result or the score of every video out.

    evaluator = Evaluator(shards, checkpoint=None, split=None, compute=COMPUTE)
        shards: a folder, or data.Shards that are open already (seen through a split, perhaps with an overlay of labels);
        checkpoint: run, checkpoint folder or file, several of them, or None for the newest run. It is loaded when it is first
        needed, so that features that are given need no run.

    evaluator.measure(name, **options) -> dict
        The whole result of a protocol: every network, stage, pooling and level, with intervals, written into the run's folder.

    evaluator.scores(name, selection=Selection(), **options) -> Scores
        The score of each tested video by the protocol's first metric (at video level), with one network and one kind of
        features; nothing is written. Every protocol that scores items has it, one that is added tomorrow, too: `scores` runs the
        protocol's own code on the selection.

    Selection(stage="last", pooling="max", parts=1, features=None, test=None, train=None)
        stage, pooling: which features ("last": the last stage that there is)
        parts: equal parts of a video's time, whose mean features stand side by side
        features: features.Features of the 10 spread clips (or of one vector) of every video of the shards, in the order of
            Shards.videos; None: those of the run's pretrained network, extracted once and kept in the run
        test, train: int64 rows of Shards.videos that are tested and learnt from (or searched); None: as the protocol chooses
            them by the split and the labels

    Scores(right, chance)
        right: dict from the id of each tested video to its score, 0 to 1 (a hit, or the share of its clips, draws or triples)
        chance: likewise what chance would score; None where the protocol tells it for no single video

What a study asks for:

    Evaluator(shards).scores("linear", Selection("conv5", "mean", parts=2, features=found, test=test, train=train))
    Evaluator(shards).scores("knn", Selection(...), k=5)          "5-NN"; the command has k = 1, 5, 20
    Evaluator(shards).scores("retrieval", Selection(...), k=10)   "top-10"
    Evaluator(shards).scores("smoothness", Selection(...))        share of a video's triples of clips that are ordered by distance
    Evaluator(shards, run).scores("recognition")                  of a finetuned run
    Evaluator(shards, run, split).scores("pretext", draws=2)      of the run's first method, with chance

Protocols raise a VsslError (ProtocolError with advice) if the run or the data do not allow it: TrainerError for a stage that
the features lack, for fewer than two classes to learn from.
"""
