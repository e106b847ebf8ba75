"""LeRobot's dataset folders as the content of replay buffers: formats 2.0, 2.1 and 3.0 are read, 3.0 is written.

    observation.images.<key>, observation.<key> -> <key>      action -> action      task_index -> task_index
    next.reward -> reward       next.done -> done             next.success -> success

Names that do not follow this rule stand in ``attributes["lerobot"]["features"]``. The instructions are
``attributes["tasks"]``, and `task_index` says of every step which of them holds; ``attributes["fps"]`` is the control
rate in Hz. `timestamp` becomes an array only where it is not ``frame_index / fps``.

A folder of our own has one file more, `meta/workbench.json`, with the shapes and attributes that the format cannot
say: reading it gives the buffer that was written. Others ignore the file.

Source: huggingface/lerobot, the layout of LeRobotDataset v2.1 and v3.0.
"""

from policy.data.lerobot.layout import is_dataset
from policy.data.lerobot.reader import describe, read
from policy.data.lerobot.writer import write

__all__ = ["describe", "is_dataset", "read", "write"]
