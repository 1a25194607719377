"""What of Qwen2.5-VL's vision part no key of a GGUF file says, because llama.cpp has it in its code
(tools/mtmd/clip.cpp)."""

MERGE = 2  # patches a side that become one token
WINDOW = 112  # pixels a side of an attention window
ROTARY_BASE = 10000.0
