"""Images made by denoising: data, networks, systems from the literature, and honest measurements of them."""
