"""What comes in: pools of normals."""
