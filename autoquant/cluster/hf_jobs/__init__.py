"""Jobs of a batch as Hugging Face Jobs: on rented machines of the Hub's, which get this very
package, upload what they make, and go on without the client that started them.
"""
