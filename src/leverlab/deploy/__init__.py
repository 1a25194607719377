"""The trained selector in use: llama.cpp as the runtime of the answering model, parity with it, and the bundle."""
