"""The main job: index, plan, read, generate, write, verify."""
