"""Post-training of language models on TRL and PEFT: questions, dialogues, rewards, rollouts, trainers."""
