"""The HDF5 shard: the interface between the label generator and all readers of its labels.

One file holds the frames (JPEG) and all labels of a few videos. It is written beside its target, synced, re-read and
renamed: a file with the final name is complete. The layout is described in docs/shards.md.

h5py writes shards, but does not read them: the HDF5 library trusts the files that it opens, but shards may come from
untrusted sources. They are read by a header in front of the HDF5 structure, which is checked before use.
"""

from labelgen.labels.kind import NO_ROW as NO_ROW
from labelgen.shards.collection import hash_of_all as hash_of_all
from labelgen.shards.folder import disagreements as disagreements
from labelgen.shards.folder import open_shards as open_shards
from labelgen.shards.folder import shard_paths as shard_paths
from labelgen.shards.names import VideoNames as VideoNames
from labelgen.shards.reader import ShardReader as ShardReader
from labelgen.shards.schema import NONE as NONE
from labelgen.shards.schema import PARTS as PARTS
from labelgen.shards.schema import SCHEMA_VERSION as SCHEMA_VERSION
from labelgen.shards.schema import TEST as TEST
from labelgen.shards.schema import TRAIN as TRAIN
from labelgen.shards.schema import VALIDATION as VALIDATION
from labelgen.shards.schema import config_hash as config_hash
from labelgen.shards.schema import labels_sha256 as labels_sha256
from labelgen.shards.writer import encode_frame as encode_frame
from labelgen.shards.writer import write as write
