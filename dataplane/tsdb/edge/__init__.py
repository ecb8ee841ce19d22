"""The edge side: a database beside a vehicle's application, on its flash, whose files are what the cloud imports."""
