"""Places that pretrained weights come from: one file each. The only hub clients in the house."""
