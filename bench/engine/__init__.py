"""The engine and the model without HTTP: throughput, the machine's limit, where time goes, what sessions cost."""
