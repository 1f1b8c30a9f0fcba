"""What lies on the device: slots of states, the steps over them, and the way of states to the host and back."""
