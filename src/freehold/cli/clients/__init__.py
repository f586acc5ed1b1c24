"""Programs and SDKs that speak to the server: their settings files and what `doctor compat` asks of them."""
