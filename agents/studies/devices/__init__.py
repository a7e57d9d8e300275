"""The device matrix: policies on many devices, each at the same shares of what that device can carry."""
