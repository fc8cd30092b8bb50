"""The videos of a data set: a manifest (YAML) and a folder give a list of videos with label, group and splits.

The form of a manifest is described in docs/manifests.md.
"""

from labelgen.manifest.dataset import Dataset as Dataset
from labelgen.manifest.dataset import Video as Video
from labelgen.manifest.dataset import Videos as Videos
from labelgen.manifest.dataset import default_root as default_root
from labelgen.manifest.dataset import load as load
from labelgen.manifest.dataset import select as select
from labelgen.manifest.dataset import split_name as split_name
