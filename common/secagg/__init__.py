"""The parts of secure aggregation: the coordinator sees sums over silos, and nothing of one silo.

The protocol is that of Bonawitz et al. 2017 (CCS, "Practical Secure Aggregation for Privacy-Preserving Machine Learning") on the
k-regular graph of Bell et al. 2020 (CCS, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"). Here are the
values and functions that both sides share; the order of messages is kept elsewhere.
"""
