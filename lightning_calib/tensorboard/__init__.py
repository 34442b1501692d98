"""The "Gradients" tab: what is written into event files, and what TensorBoard shows of it."""
