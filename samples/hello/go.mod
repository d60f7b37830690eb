module github.com/sonagi/sonagi/samples/hello

go 1.24
