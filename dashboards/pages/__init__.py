"""The dashboard's pages: each a function from what is looked at to the components that show it, live or in a file."""
