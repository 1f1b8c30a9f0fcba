"""Who is served when: policy in tokens, slots and seconds. No tensors."""
