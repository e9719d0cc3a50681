# SPDX-License-Identifier: Apache-2.0
"""Container images of dodas: one folder an image, built once, cached by content."""
