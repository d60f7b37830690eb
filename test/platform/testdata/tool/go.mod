module github.com/sonagi/sonagi/test/tool

go 1.24
