"""The hand-over to hls4ml: check, derive types, write, compile, compare."""
