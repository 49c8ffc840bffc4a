from mlorun.verify.oracles import *  # noqa: F403
